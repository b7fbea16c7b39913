"""What people read of a run: progress, tables, plots, descriptions of methods, the demonstration."""
