"""What do the statistics that a client uploads give away?"""
