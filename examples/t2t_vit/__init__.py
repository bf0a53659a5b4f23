"""T2T-ViT on ImageNet, and a miniature of it on handwritten digits."""
