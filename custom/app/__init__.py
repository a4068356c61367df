"""The local web page `fewview-ct app`: radiographs in, what is missing asked in a form, a queue of jobs, the report.

The server reads no file of a client itself: every step is a process of its own that runs the command line
(`work_queue`). What is known of a case lies in its folder (`case_folder`), so that a restart loses nothing.
"""
