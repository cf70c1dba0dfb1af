"""What lies in a folder, shared by tests that compare what is written."""


def files(folder):
  """Returns the bytes of every file by its relative path."""
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for file in folder.rglob('*')
    if file.is_file()
  }
