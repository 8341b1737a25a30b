"""Reading and writing of files on a disk or in a bucket, for runs, corpora and exports.

| module        | contents                                                                     |
|---------------|------------------------------------------------------------------------------|
| `writing`     | files and folders that are written completely or not at all                  |
| `growing`     | files that grow line by line                                                 |
| `locking`     | locks between processes; `lease` is the one in a bucket                      |
| `limits`      | the number of files that may be open                                         |
| `parsing`     | JSON                                                                         |
| `wire_format` | fields of protocol buffers                                                   |
| `paths`       | paths as users give them, local copies                                       |
| `bucket`      | `BucketPath`, the methods of `pathlib.Path` for gs://; `gcs` sends requests  |
"""

from bertgpt.files.bucket import MANIFEST, BucketPath, in_parallel
from bertgpt.files.growing import append, open_growing, upload, upload_all, write_all
from bertgpt.files.lease import Holder
from bertgpt.files.limits import raise_open_limit
from bertgpt.files.locking import check_lock, lock
from bertgpt.files.parsing import (
    LFS_POINTER,
    parse_json,
    read_json,
    read_json_lines,
    without_nonfinite,
)
from bertgpt.files.paths import (
    copy_locally,
    download_tree,
    expand,
    find_problem,
    has_file,
    is_matched,
    is_remote,
    make_path,
    match_objects,
    naming,
    open_read,
    raise_if_unanswered,
    refuse_dangling,
    remove_copies,
    require_utf8,
    size_of,
)
from bertgpt.files.writing import (
    is_unfinished,
    new_folder,
    publish_when_done,
    refuse_existing,
    remove_leftovers,
    remove_tree,
    rename_new,
    require_file,
    require_parent,
    sync,
    unfinished_path,
    write_atomically,
    write_json,
)

__all__ = ["BucketPath", "Holder", "LFS_POINTER", "MANIFEST", "append", "check_lock",
           "copy_locally", "download_tree", "expand", "find_problem", "has_file", "in_parallel",
           "is_matched", "is_remote", "is_unfinished", "lock", "make_path", "match_objects",
           "naming", "new_folder", "open_growing", "open_read", "parse_json", "publish_when_done",
           "raise_if_unanswered", "raise_open_limit", "read_json", "read_json_lines",
           "refuse_dangling", "refuse_existing", "remove_copies", "remove_leftovers",
           "remove_tree", "rename_new", "require_file", "require_parent", "require_utf8",
           "size_of", "sync", "unfinished_path", "upload", "upload_all",
           "without_nonfinite", "write_all", "write_atomically", "write_json"]
