"""Array functions that know no model: attention, random streams, resampling, FLOPs."""
