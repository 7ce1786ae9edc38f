// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <laconic/core/error.hpp>
#include <laconic/io/json.hpp>
#include <laconic/io/tensors.hpp>
#include <laconic/io/torch_pickle.hpp>
#include <laconic/io/zip.hpp>
#include <string>
#include <string_view>
#include <utility>

// State dicts as torch.save writes them since PyTorch 1.6 (pytorch_model.bin): a zip file of NAME/data.pkl, which says
// for each tensor its storage, offset, shape and strides, and of NAME/data/0, NAME/data/1 ..., the bytes of the
// storages.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns "NAME/" of the one entry NAME/data.pkl. Throws `Error` if there is none or more than one.
inline std::string torch_folder(const std::string& where, const ZipDirectory& zip) {
  std::string out;
  for (const auto& [name, bytes] : zip.entries()) {
    const std::size_t size = name.find('/') + 1;
    if (size == 0 || name.substr(size) != "data.pkl") continue;
    require(out.empty(), where, ": holds two entries */data.pkl, one expected");
    out = name.substr(0, size);
  }
  require(!out.empty(), where, ": a zip file without an entry */data.pkl, which torch.save writes");
  return out;
}

/// Returns the text of a small entry, or `otherwise` if there is none.
inline std::string_view torch_note(const ZipDirectory& zip, const std::string& name, std::string_view otherwise) {
  const auto* const bytes = zip.find(name);
  if (bytes == nullptr) return otherwise;
  const std::string_view note = text_at(*bytes, 0, bytes->size());
  return note.substr(0, note.find_last_not_of('\n') + 1);
}

}  // namespace detail

/// Opens the tensors of a state dict that torch.save wrote, in the dict's order. Nothing in the file is executed.
class TorchFile : public Tensors {
 public:
  /// Maps the file and checks it. Throws `Error` for anything but a plain state dict of PyTorch 1.6 or later.
  explicit TorchFile(const std::filesystem::path& path) : Tensors(path.string()) {
    const std::string& where = this->path();
    const auto bytes = map(path);
    // A file of the older format begins with a pickle of this number.
    constexpr std::string_view old_mark = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    require(bytes.size() < old_mark.size() + 2 || detail::text_at(bytes, 2, old_mark.size()) != old_mark, where,
            ": the format of PyTorch before 1.6, a zip file expected: torch.load and torch.save it with a newer one");
    const detail::ZipDirectory zip(where, bytes);
    const std::string folder = detail::torch_folder(where, zip);
    const std::string_view version = detail::torch_note(zip, folder + "version", "");
    require(version.size() == 1 ? version[0] >= '1' && version[0] <= '9' : version == "10", where,
            ": a torch.save file of version ", detail::in_quotes(version), ", 1 to 10 expected");
    const std::string_view order = detail::torch_note(zip, folder + "byteorder", "little");
    require(order == "little", where, ": byte order ", detail::in_quotes(order), ", 'little' expected");
    detail::TorchPickle pickle(where, zip, folder);
    for (auto& [name, info] : pickle.tensors) add(name, std::move(info));
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
