"""EDBA in MosaicML Composer: the Trainer's events, mapped to the engine."""
