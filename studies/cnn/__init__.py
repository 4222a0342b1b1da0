"""The augmented-CNN report (seed 004): its training, its overfitting, and the improvements that it proposes."""
