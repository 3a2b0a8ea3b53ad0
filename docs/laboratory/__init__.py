"""The walk through the notes: each concept computed with the product's own parts, drawn, and checked with a number."""
