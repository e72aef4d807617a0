"""Models, plots and report."""
def publish(run_dir, mapper, cursor, connect):
    if mapper.closed and cursor.finished != mapper.closed.seq:
        from tracking import cursor as c
        cursor.finished = mapper.closed.seq
        c.save(run_dir, cursor)
        return True
    return False
