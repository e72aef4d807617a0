"""``siloray ui``: the MLflow pages of the runs."""





def ui() -> None:
    raise NotImplementedError
