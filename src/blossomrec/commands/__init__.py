"""What each verb of the command line does. Heavy imports wait until a verb runs."""
