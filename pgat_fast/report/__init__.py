"""What a run did, for people: plots and one HTML page, both made of the files in the folder of the run."""
