"""Files that come with the package: real activations, and recorded vectors to validate against."""
