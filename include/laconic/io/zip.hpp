// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <laconic/core/error.hpp>
#include <laconic/io/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

// The part of the zip format (APPNOTE.TXT of PKWARE) that torch.save writes: entries that are stored, not compressed,
// with 64-bit sizes where needed.
//
//   entry ... entry | central directory | [zip64 end record, zip64 locator] | end record
//
// An entry is a local header, its name, padding and its bytes. The directory has the position and size of each.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns the little-endian number at this byte. The caller has checked that it lies within `bytes`.
template <std::unsigned_integral T>
T number_at(std::span<const std::byte> bytes, std::size_t at) {
  T out;
  std::memcpy(&out, bytes.data() + at, sizeof(T));
  return out;
}

/// Returns `size` bytes from this byte as a text. The caller has checked that they lie within `bytes`.
inline std::string_view text_at(std::span<const std::byte> bytes, std::size_t at, std::size_t size) {
  return {reinterpret_cast<const char*>(bytes.data()) + at, size};
}

/// Finds the entries of a zip file in memory. Everything that the directory claims is checked: entries do not overlap,
/// and their bytes lie within the file. Checksums are not checked: that would read the whole file, and torch.save can
/// leave them out.
class ZipDirectory {
 public:
  /// Reads the directory. Throws `Error`, naming `where`, for a damaged file and for entries that are not plainly
  /// stored.
  ZipDirectory(const std::string& where, std::span<const std::byte> bytes) : where_(where), bytes_(bytes) {
    read_end();
    read_directory();
    check_overlaps();
  }

  /// Returns the bytes of an entry, or null if there is none of that name.
  const std::span<const std::byte>* find(std::string_view name) const {
    const auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : &found->second;
  }
  /// Returns the bytes of all entries by name.
  const std::unordered_map<std::string_view, std::span<const std::byte>>& entries() const { return entries_; }

 private:
  /// Sizes of the records in bytes, without their variable parts, and the max size of a name.
  static constexpr std::size_t end_bytes = 22, locator_bytes = 20, end64_bytes = 56, central_bytes = 46,
                               local_bytes = 30, max_name = 1024;  // a pickle may name an entry millions of times
  /// Signatures with which the records begin.
  static constexpr std::uint32_t end_mark = 0x06054b50, locator_mark = 0x07064b50, end64_mark = 0x06064b50,
                                 central_mark = 0x02014b50, local_mark = 0x04034b50;
  /// Marks a 16-bit value that is in the zip64 record instead.
  static constexpr std::uint16_t all16 = 0xffff;
  /// Marks a 32-bit value that is in the zip64 record instead.
  static constexpr std::uint32_t all32 = 0xffffffff;

  /// Describes the bytes that an entry occupies.
  struct Entry {
    std::string_view name;
    std::uint64_t begin, end;  ///< from its local header to the end of its bytes
  };

  /// Returns the little-endian number at a byte of the file.
  template <std::unsigned_integral T>
  T number(std::size_t at) const {
    return number_at<T>(bytes_, at);
  }

  /// Finds the directory from the end of the file.
  void read_end() {
    require(bytes_.size() >= end_bytes, where_, ": cut short, or not a zip file: ", bytes_.size(), " bytes, at least ",
            end_bytes, " expected");
    const std::size_t end = bytes_.size() - end_bytes;
    require(number<std::uint32_t>(end) == end_mark && number<std::uint16_t>(end + 20) == 0, where_,
            ": cut short, or not a zip file: no zip end record in its last ", end_bytes, " bytes");
    std::uint64_t disks = number<std::uint16_t>(end + 4) | number<std::uint16_t>(end + 6);
    std::uint64_t here = number<std::uint16_t>(end + 8), size = number<std::uint32_t>(end + 12);
    count_ = number<std::uint16_t>(end + 10);
    begin_ = number<std::uint32_t>(end + 16);
    end_ = end;
    if (end >= locator_bytes + end64_bytes && number<std::uint32_t>(end - locator_bytes) == locator_mark) {
      const std::size_t locator = end - locator_bytes, end64 = locator - end64_bytes;
      require(number<std::uint64_t>(locator + 8) == end64 && number<std::uint32_t>(end64) == end64_mark, where_,
              ": damaged: the zip64 end record is not at byte ", end64);
      require(number<std::uint64_t>(end64 + 4) == end64_bytes - 12, where_, ": damaged: a zip64 end record of ",
              number<std::uint64_t>(end64 + 4), " bytes, ", end64_bytes - 12, " expected");
      const std::uint64_t count = number<std::uint64_t>(end64 + 32), bytes = number<std::uint64_t>(end64 + 40),
                          begin = number<std::uint64_t>(end64 + 48);
      require((count_ == all16 || count_ == count) && (size == all32 || size == bytes) &&
                  (begin_ == all32 || begin_ == begin),
              where_, ": damaged: the zip end record and the zip64 end record differ");
      disks = number<std::uint32_t>(end64 + 16) | number<std::uint32_t>(end64 + 20);
      here = number<std::uint64_t>(end64 + 24);
      count_ = count;
      size = bytes;
      begin_ = begin;
      end_ = end64;
    }
    require(disks == 0 && here == count_, where_, ": a zip file in several parts, one whole file expected");
    require(begin_ <= end_ && size == end_ - begin_, where_, ": damaged: a zip directory of ", size, " bytes at byte ",
            begin_, ", but its end is at byte ", end_);
  }

  /// Reads all entries of the directory.
  void read_directory() {
    std::uint64_t at = begin_;
    while (at < end_) {
      require(end_ - at >= central_bytes && number<std::uint32_t>(at) == central_mark, where_,
              ": damaged: no zip directory entry at byte ", at);
      const std::size_t name_size = number<std::uint16_t>(at + 28), extra_size = number<std::uint16_t>(at + 30),
                        size = central_bytes + name_size + extra_size + number<std::uint16_t>(at + 32);
      require(end_ - at >= size, where_, ": damaged: the zip directory entry at byte ", at, " is longer than the rest");
      read_entry(at, text_at(bytes_, at + central_bytes, name_size),
                 bytes_.subspan(at + central_bytes + name_size, extra_size));
      at += size;
    }
    require(order_.size() == count_, where_, ": damaged: the zip directory holds ", order_.size(), " entries, ", count_,
            " expected");
  }

  /// Throws `Error` about this entry unless `condition` holds.
  template <class... Parts>
  void check(bool condition, std::string_view name, const Parts&... parts) const {
    require(condition, where_, ": zip entry ", in_quotes(name), ' ', parts...);
  }

  /// Checks one entry of the directory, and its local header, and adds it.
  void read_entry(std::uint64_t at, std::string_view name, std::span<const std::byte> extra) {
    check(name.size() <= max_name, name, "has a name of ", name.size(), " bytes, at most ", max_name, " expected");
    const std::uint16_t flags = number<std::uint16_t>(at + 8), method = number<std::uint16_t>(at + 10);
    check((flags & 1) == 0, name, "is encrypted");
    check(method == 0, name, "is compressed (method ", method, "), stored bytes expected, as torch.save writes");
    std::uint64_t packed = number<std::uint32_t>(at + 20), size = number<std::uint32_t>(at + 24),
                  local = number<std::uint32_t>(at + 42);
    std::uint32_t disk = number<std::uint16_t>(at + 34);
    take_zip64(name, extra, size, packed, local, disk);
    check(disk == 0, name, "is in another part of a zip file in several parts");
    check(packed == size, name, "has ", packed, " bytes stored of ", size, ", all expected");

    check(begin_ >= local_bytes && local <= begin_ - local_bytes && number<std::uint32_t>(local) == local_mark, name,
          "has no header at byte ", local);
    const std::uint64_t name_size = number<std::uint16_t>(local + 26), extra_size = number<std::uint16_t>(local + 28),
                        room = begin_ - local - local_bytes;
    check(name_size + extra_size <= room && size <= room - name_size - extra_size, name, "has ", size,
          " bytes at byte ", local, ", which reaches into the zip directory at byte ", begin_);
    check(text_at(bytes_, local + local_bytes, name_size) == name, name, "has another name at byte ", local);
    check(number<std::uint16_t>(local + 8) == 0 && (number<std::uint16_t>(local + 6) & 1) == 0, name,
          "is compressed or encrypted at byte ", local);
    const std::uint64_t data = local + local_bytes + name_size + extra_size;
    check(entries_.emplace(name, bytes_.subspan(data, size)).second, name, "appears twice");
    order_.push_back({name, local, data + size});
  }

  /// Reads the values that do not fit the entry's own 32 or 16 bits: an extra field of type 1 holds them, in this
  /// order.
  void take_zip64(std::string_view name, std::span<const std::byte> extra, std::uint64_t& size, std::uint64_t& packed,
                  std::uint64_t& local, std::uint32_t& disk) const {
    while (!extra.empty()) {
      check(extra.size() >= 4, name, "has a damaged extra field");
      const std::size_t field_size = number_at<std::uint16_t>(extra, 2);
      check(field_size <= extra.size() - 4, name, "has a damaged extra field");
      std::span<const std::byte> field = extra.subspan(4, field_size);
      const auto take = [&]<class T>(T& number, T given, std::uint64_t unfit) {
        if (number != unfit) return;
        check(field.size() >= sizeof given, name, "has a zip64 field that is too short");
        number = number_at<T>(field, 0);
        field = field.subspan(sizeof given);
      };
      if (number_at<std::uint16_t>(extra, 0) == 1) {
        for (std::uint64_t* const each : {&size, &packed, &local}) take(*each, std::uint64_t{}, all32);
        take(disk, std::uint32_t{}, all16);
        return;
      }
      extra = extra.subspan(4 + field_size);
    }
  }

  /// Throws `Error` if two entries overlap.
  void check_overlaps() {
    std::sort(order_.begin(), order_.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
    for (std::size_t i = 1; i < order_.size(); ++i)
      check(order_[i - 1].end <= order_[i].begin, order_[i].name, "begins at byte ", order_[i].begin, ", within entry ",
            in_quotes(order_[i - 1].name));
  }

  const std::string& where_;
  std::span<const std::byte> bytes_;
  std::uint64_t count_ = 0, begin_ = 0, end_ = 0;  ///< the directory's number of entries, first byte and end
  std::vector<Entry> order_;
  std::unordered_map<std::string_view, std::span<const std::byte>> entries_;
};

}  // namespace detail

}  // namespace LACONIC_ABI
}  // namespace laconic
