"""What `make gpu` runs on a machine with a GPU: the tests, the measurements and their record."""
