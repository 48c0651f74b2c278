"""A process that has started up collects less often, and not what start-up made."""

from __future__ import annotations

import gc

from packhorse.garbage import YOUNG_OBJECTS, calm_collector


def test_the_heap_of_start_up_is_frozen_and_young_objects_still_collected() -> None:
    before = gc.get_threshold()
    try:
        calm_collector()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
