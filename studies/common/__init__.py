"""Code that the studies share: computing runs, recording them, and showing the results."""
