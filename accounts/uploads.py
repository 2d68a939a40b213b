"""Limits the size of uploads while they arrive, on every page and for every client."""

from io import BytesIO
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadedfile import InMemoryUploadedFile, UploadedFile
from django.core.files.uploadhandler import FileUploadHandler

from accounts.avatars import MAX_BYTES

# A body up to this many bytes is read to its end, so that the client gets a response and not a reset connection.
MAX_BODY = 100_000_000


class LimitedUploadHandler(FileUploadHandler):
    """Keeps the files of a request in memory, MAX_BYTES in total, and never on disk.

    What exceeds the limit is read and discarded. The form then gets the file with its true size but no content, so that
    it can say what is wrong.

    Raises RequestDataTooBig (400) for a body of more than MAX_BODY bytes, before it is read.
    """

    def __init__(self, request: Any = None) -> None:
        super().__init__(request)
        self.room = MAX_BYTES

    def handle_raw_input(
        self, input_data: Any, META: Any, content_length: int, boundary: Any, encoding: Any = None
    ) -> None:
        if content_length > MAX_BODY:
            raise RequestDataTooBig(f"Request body too large: {content_length} bytes, limit {MAX_BODY}.")

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self.content = BytesIO()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if len(raw_data) > self.room:
            self.content.truncate(0)
            self.room = 0
        if self.room:
            self.room -= len(raw_data)
            self.content.write(raw_data)

    def file_complete(self, file_size: int) -> "UploadedFile[bytes]":
        self.content.seek(0)
        return InMemoryUploadedFile(
            self.content,
            self.field_name,
            self.file_name,
            self.content_type,
            file_size,
            self.charset,
            self.content_type_extra,
        )
