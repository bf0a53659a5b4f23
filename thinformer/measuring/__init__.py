"""What the commands print: errors, times, and checks of an installation."""
