"""What mixed precision brings, measured in the job itself: blocks of steps in one precision and the other, in random order."""
