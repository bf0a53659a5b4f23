"""BigGAN-deep-512 with another attention."""
