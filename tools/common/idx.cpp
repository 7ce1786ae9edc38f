// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "idx.hpp"

#include <laconic/core/error.hpp>
#include <laconic/io/descriptor.hpp>

#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <memory>

using namespace laconic;

namespace {

/// Reads exactly `size` bytes, or says what is wrong.
void read(gzFile file, void* out, std::size_t size, const std::string& path) {
  constexpr std::size_t piece = std::size_t{1} << 30;  // gzread counts in int
  auto* to = static_cast<unsigned char*>(out);
  for (std::size_t done = 0; done < size;) {
    const int got = gzread(file, to + done, static_cast<unsigned>(std::min(piece, size - done)));
    int code = Z_OK;
    const char* message = gzerror(file, &code);
    require(got >= 0 && (code == Z_OK || code == Z_BUF_ERROR), path, ": not a sound gzip file (", message, ")");
    require(got > 0, path, ": ends after ", done, " of ", size, " bytes of this part");
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace

IdxBytes read_idx(const std::string& path, std::size_t dimensions) {
  const auto opened = detail::open_to_read(path);
  const int own = ::dup(opened.descriptor.get());  // which gzclose closes
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzdopen(own, "rb"), gzclose);
  if (file == nullptr) ::close(own);
  require(file != nullptr, path, ": cannot be opened: out of memory");
  unsigned char head[4];
  read(file.get(), head, 4, path);
  require(head[0] == 0 && head[1] == 0, path, ": not an IDX file: it begins with other bytes than 0 0");
  require(head[2] == 8, path, ": IDX numbers of type ", int{head[2]}, " given, 8 (unsigned bytes) expected");
  require(head[3] == dimensions, path, ": ", int{head[3]}, " dimensions given, ", dimensions, " expected");
  IdxBytes out;
  std::int64_t count = 1;
  constexpr std::int64_t max = std::int64_t{1} << 34;
  for (std::size_t i = 0; i < dimensions; ++i) {
    unsigned char size[4];
    read(file.get(), size, 4, path);
    const std::int64_t elements = (std::int64_t{size[0]} << 24) | (size[1] << 16) | (size[2] << 8) | size[3];
    require(elements > 0 && elements <= max / count, path, ": a size of 0, or more than ", max, " bytes, given");
    out.shape.push_back(elements);
    count *= elements;
  }
  // The sizes of a broken file may be wild: memory grows with what is really there.
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t next = std::min(count - done, std::int64_t{1} << 24);
    out.values.resize(static_cast<std::size_t>(done + next));
    read(file.get(), out.values.data() + done, static_cast<std::size_t>(next), path);
    done += next;
  }
  unsigned char more;
  const int rest = gzread(file.get(), &more, 1);
  require(rest >= 0, path, ": not a sound gzip file");
  require(rest == 0, path, ": longer than its sizes say (", count, " bytes)");
  return out;
}
