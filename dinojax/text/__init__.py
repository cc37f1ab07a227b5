"""Text aligned with images: tokenizer, towers, and what they answer together (dino.txt)."""
