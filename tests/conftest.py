"""Files with slow tests start first, so that no process is left alone with them at the end."""


def pytest_collection_modifyitems(items):
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)
