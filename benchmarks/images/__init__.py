"""Detection on images, draws per image, and the cost of a diffusion step."""
