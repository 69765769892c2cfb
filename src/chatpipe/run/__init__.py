"""What a run is: its steps, their status, its folder, and how steps are started in one process or several."""
