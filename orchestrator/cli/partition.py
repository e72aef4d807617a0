def partition() -> None:
    raise NotImplementedError
