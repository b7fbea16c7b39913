"""How claims are measured, judged and written down; it knows none of them."""
