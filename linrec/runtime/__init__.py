"""What runs after compilation: plans, their guards and validation, and the dispatcher in front of forward."""
