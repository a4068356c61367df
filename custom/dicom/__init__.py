"""DICOM: radiographs in, CT series and parametric maps out, and the way to and from a PACS."""
