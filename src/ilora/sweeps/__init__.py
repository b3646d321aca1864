"""Many runs from one file: methods x orders x seeds x settings."""
