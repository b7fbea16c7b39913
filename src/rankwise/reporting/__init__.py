"""What people read of a run: progress, tables, plots, and the page of each run."""
