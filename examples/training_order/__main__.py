"""Run the comparison."""

from examples.training_order.compare import main

if __name__ == "__main__":
    main()
