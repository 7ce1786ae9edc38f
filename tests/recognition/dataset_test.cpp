// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Which utterances go together, and how they are packed.
#include <laconic/recognition/batch_loader.hpp>

#include "ridge_speech.hpp"
#include "temporary_folder.hpp"

#include <set>

using namespace laconic;

TEST_CASE("Length buckets", "[dataset]") {
  const Dataset data = corpus(300, Seed(4));
  const Index most = 150;
  const auto frames = [&](Index i) { return data.examples[static_cast<std::size_t>(i)].features.rows(); };
  const auto check_whole = [&](const std::vector<std::vector<Index>>& batches) {
    std::multiset<Index> seen;
    for (const auto& batch : batches) {
      REQUIRE_FALSE(batch.empty());
      Index sum = 0;
      for (const Index i : batch) sum += frames(i);
      CHECK((sum <= most || batch.size() == 1));
      seen.insert(batch.begin(), batch.end());
    }
    CHECK(seen.size() == 300);
    CHECK(std::set<Index>(seen.begin(), seen.end()).size() == 300);
    CHECK((*seen.begin() == 0 && *seen.rbegin() == 299));
  };
  const auto first = length_buckets(data, most, Seed(1));
  check_whole(first);
  CHECK(length_buckets(data, most, Seed(1)) == first);
  const auto second = length_buckets(data, most, Seed(2));
  check_whole(second);
  CHECK(second != first);
  // Other company, too, not only another order of the same batches.
  CHECK(std::set<std::vector<Index>>(first.begin(), first.end()) !=
        std::set<std::vector<Index>>(second.begin(), second.end()));

  // Like lengths together: far closer within a batch than among all.
  Index shortest = 1000, longest = 0;
  double within = 0;
  for (const auto& batch : first) {
    Index low = 1000, high = 0;
    for (const Index i : batch) low = std::min(low, frames(i)), high = std::max(high, frames(i));
    within += static_cast<double>(high - low) / static_cast<double>(first.size());
    shortest = std::min(shortest, low), longest = std::max(longest, high);
  }
  CHECK(within < 0.25 * static_cast<double>(longest - shortest));

  const auto sorted = length_buckets(data, most, std::nullopt);
  check_whole(sorted);
  Index last = 0;
  for (const auto& batch : sorted)
    for (const Index i : batch) {
      CHECK(frames(i) >= last);
      last = frames(i);
    }

  // Longer than a batch may be: each alone, none left out.
  const auto alone = length_buckets(data, 1, Seed(1));
  CHECK(alone.size() == 300);
  CHECK(length_buckets(Dataset{}, most, Seed(1)).empty());
}

TEST_CASE("Batches are packed", "[dataset]") {
  const Dataset data = corpus(6, Seed(5));
  const std::vector<Index> some{4, 0, 5};
  const SpeechBatch batch = make_batch(data, some, nullptr, Seed());
  REQUIRE(batch.sequences.size() == 3);
  REQUIRE(batch.labels.sequences.size() == 3);
  CHECK(batch.features.rows() == batch.sequences.rows());
  double seconds = 0;
  for (Index n = 0; n < 3; ++n) {
    const Example& e = data.examples[static_cast<std::size_t>(some[static_cast<std::size_t>(n)])];
    REQUIRE(batch.sequences.length(n) == e.features.rows());
    CHECK(batch.features.middleRows(batch.sequences.begin(n), batch.sequences.length(n)) == e.features);
    const auto begin = batch.labels.tokens.begin() + batch.labels.sequences.begin(n);
    CHECK(std::vector<int>(begin, begin + batch.labels.sequences.length(n)) == e.labels);
    seconds += e.seconds;
  }
  CHECK(batch.seconds == Approx(seconds));

  // An utterance's masks do not depend on the company it is in, but on the seed.
  const SpecAugmentConfig masks{
      .num_time_masks = 2, .max_time_width = 8, .max_time_fraction = 0.5, .num_freq_masks = 1, .max_freq_width = 4};
  const SpeechBatch masked = make_batch(data, some, &masks, Seed(9)), again = make_batch(data, some, &masks, Seed(9));
  CHECK(masked.features == again.features);
  CHECK(masked.features != batch.features);
  const SpeechBatch one = make_batch(data, std::vector<Index>{5}, &masks, Seed(9));
  CHECK(one.features == masked.features.middleRows(masked.sequences.begin(2), masked.sequences.length(2)));
  CHECK(make_batch(data, some, &masks, Seed(10)).features != masked.features);
  CHECK(make_batch(data, {}, nullptr, Seed()).sequences.size() == 0);
}

TEST_CASE("Features that are not kept are made again, in the background, and are the same", "[dataset]") {
  const TemporaryFolder folder;
  std::vector<Utterance> utterances;
  for (Index u = 0; u < 9; ++u) {
    const Random random(Seed(8), static_cast<std::uint64_t>(u));
    Audio audio{std::vector<float>(static_cast<std::size_t>(2000 + 300 * u)), 8000};
    for (std::size_t i = 0; i < audio.samples.size(); ++i)
      audio.samples[i] = static_cast<float>(random.uniform(i)) - 0.5F;
    const auto path = folder / text(u, ".wav");
    write_wav(path, audio);
    utterances.push_back({path, 0, u % 2 == 0 ? "ba da" : "ga", ""});
  }
  const Vocabulary vocabulary = Vocabulary::words(words);
  FeatureConfig config;
  config.fbank.sample_rate = 8000;
  config.fbank.num_mels = static_cast<int>(mels);
  const Dataset kept = load_dataset(utterances, config, &vocabulary, 2);
  const auto in_files = [](const Dataset& d) {
    return std::ranges::count_if(d.examples, [](const Example& e) { return e.in_file.has_value(); });
  };
  CHECK(in_files(kept) == 0);
  const auto bytes = static_cast<std::size_t>(kept.examples[8].features.size()) * sizeof(float);
  const SpecAugmentConfig masks{
      .num_time_masks = 1, .max_time_width = 4, .max_time_fraction = 0.5, .num_freq_masks = 1, .max_freq_width = 2};
  const auto plan = length_buckets(kept, 90, Seed(2));
  REQUIRE(plan.size() > 3);
  for (const std::size_t budget : {std::size_t{0}, 2 * bytes}) {
    const Dataset made = load_dataset(utterances, config, &vocabulary, 2, budget);
    CHECK((budget == 0 ? in_files(made) == 9 : in_files(made) > 4 && in_files(made) < 8));
    for (Index i = 0; i < 9; ++i) {
      CHECK(made.features(i) == kept.features(i));
      CHECK(made.examples[static_cast<std::size_t>(i)].features_hash() ==
            kept.examples[static_cast<std::size_t>(i)].features_hash());
    }
    CHECK(length_buckets(made, 90, Seed(2)) == plan);
    for (const int ahead : {1, 3, 20}) {
      BatchLoader loader(made, plan, 1, masks, Seed(3), ahead);
      for (std::size_t b = 1; b < plan.size(); ++b) {
        const SpeechBatch batch = loader.next(), expected = make_batch(kept, plan[b], &masks, Seed(3));
        CHECK(batch.features == expected.features);
        CHECK(batch.labels.tokens == expected.labels.tokens);
      }
      CHECK_THROWS_WITH(loader.next(), text("batches: all ", plan.size(), " have been taken"));
    }
    BatchLoader unused(made, plan, 0, masks, Seed(3), 2);  // what was begun ends with it
  }

  // A file that has changed, or is gone, is an error where its batch is taken.
  const Dataset made = load_dataset(utterances, config, &vocabulary, 1, 0);
  const std::string first = (folder / "0.wav").string();
  write_wav(first, {std::vector<float>(2000, 0.25F), 8000});
  BatchLoader changed(made, {{1, 2}, {3, 0}}, 0, masks, Seed(3), 2);
  CHECK(changed.next().sequences.size() == 2);
  CHECK_THROWS_WITH(changed.next(), first + ": is not what it was when the dataset was loaded");
  CHECK_THROWS_WITH(changed.next(), "batches: all 2 have been taken");
  std::filesystem::remove(first);
  BatchLoader gone(made, {{0}}, 0, masks, Seed(3));
  CHECK_THROWS_AS(gone.next(), Error);
}
