FALSE_ALARMS = 10.0  # of a class in 1000 pictures without objects, at most, if nothing else is asked for
