"""What only the walk needs: figures, exercises, and what runs and checks the notebooks."""
