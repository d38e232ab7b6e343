"""One flat file for each framework; nothing imports them but the application, and the recorder by name."""
