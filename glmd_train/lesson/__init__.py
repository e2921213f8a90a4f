FALSE_ALARMS = 10.0  # of 1000 pictures without objects, at most so many with one of a class, if none is given
