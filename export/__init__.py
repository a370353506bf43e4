"""Put the classifier and the image synthesiser on a device that has no torch."""
