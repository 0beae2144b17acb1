"""What programs are made for: the accelerator, and the plain arithmetic it is checked against."""
