"""Many small runs beside one large one: configurations and seeds, on the devices at hand or in any queue."""
