"""T2T-ViT on ImageNet, and a small version of it on handwritten digits."""
