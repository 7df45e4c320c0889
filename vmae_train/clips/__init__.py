"""From decoded frames to masked clips on the device. Importing this package imports no torch."""
