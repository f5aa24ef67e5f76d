"""DBA, EDBA's predecessor: a subset for every layer."""
