"""`python -m swift_edge` is `swift-edge`."""

from swift_edge.cli import main

if __name__ == "__main__":
    main()
