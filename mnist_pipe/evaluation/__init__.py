"""From logits to figures, comparisons, pictures and the report."""
