"""Records on disk as frozen types: what each field means. The stages of a run hand each other these, and no torch."""
