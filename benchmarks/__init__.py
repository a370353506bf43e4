"""Does it fit this device, how fast, with how much memory?"""
