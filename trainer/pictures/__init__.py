"""Pictures that we draw: contact sheet, loss curve, grids. One way to write text: `drawing.write`."""
