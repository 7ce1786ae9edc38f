// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/speech/words.hpp>

#include <string>
#include <string_view>
#include <unordered_map>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Changes the spelling of every stem with every ending: stem + british + ending. "-" stands for an empty one.
struct SpellingRule {
  std::string_view british, american, endings, stems;
};

/// Lists the words of https://www.tysto.com/uk-us-spelling-list.html, to which the normaliser of Whisper refers, as its
/// english.json holds them. Slips of that list are kept, so that rates are comparable: "pummelled" becomes "pummel".
inline constexpr SpellingRule spelling_rules[] = {
    {"is", "iz", "e ed es ing",
     "accessor anglic antagon apolog author bapt bastard bowdler brutal canal cannibal canon capital caramel "
     "carbon categor cauter central character circular civil collectiv commercial compartmental computer "
     "conceptual contextual criminal critic custom demon deodor depersonal deput digit econom editorial empath "
     "emphas energ epitom eulog evangel exorc factor fantas femin galvan ghetto glamor homogen human hybrid hypnot "
     "hypothes idol immortal individual industrial initial intellectual italic item jeopard legitim local magnet "
     "memor memorial mesmer metabol militar minim modern moral optim ostrac overemphas particular penal personal "
     "philosoph plagiar propagand public radical random revital revolution rhapsod romantic sanit satir scandal "
     "scrutin sensational sensit sentimental sermon signal sodom solemn summar symbol tempor tender terror theor "
     "traumat trivial tyrann vandal verbal"},
    {"is", "iz", "ation e ed es ing",
     "acclimat crystall decentral decriminal dehuman demilitar demobil democrat demoral denational desensit "
     "destabil extempor familiar final formal fossil fratern global harmon hospital ideal immun institutional "
     "internal international legal liberal lion marginal material maxim mechan miniatur mobil monopol natural "
     "neutral normal oxid passiv pasteur pedestrian polar politic popular pressur priorit professional pulver "
     "regular secular social standard stigmat synchron systemat union urban vapor victim vulgar western"},
    {"is", "iz", "ation ations e ed es ing",
     "dramat external fictional general national privat rational reorgan serial special visual vocal"},
    {"is", "iz", "ation e ed er ers es ing", "colon equal fertil immobil ion stabil subsid"},
    {"is", "iz", "e ed er ers es ing", "liquid moistur proselyt sympath synthes woman"},
    {"is", "iz", "e ed es ing ingly", "agon patron tantal"},
    {"is", "iz", "able ation ations e ed es ing", "amort real"},
    {"is", "iz", "ed", "annual motor ritual transistor unauthor uncivil underutil unorgan vulcan"},
    {"is", "iz", "ation ational ations e ed er ers es ing", "organ"},
    {"is", "iz", "ation ations e ed er ers es ing", "steril"},
    {"is", "iz", "able ably ance e ed es ing", "recogn"},
    {"is", "iz", "able ation e ed es ing", "util"},
    {"is", "iz", "er ers ing ingly", "appet"},
    {"is", "iz", "ation ed", "disorgan"},
    {"is", "iz", "able ed", "unrecogn"},
    {"ll", "l", "ed ing",
     "backpeda bedevi cance caro cavi channe chise cudge dia disembowe drive due ename funne gambo grove impane "
     "imperi initia labe marsha parce peda penci quarre rave refue remode riva shove shrive signa snive snorke "
     "spira squirre stenci swive towe tria tunne unrave wease yode"},
    {"ll", "l", "ed er ers ing", "leve mode reve trave"},
    {"ll", "l", "ed", "bejewe beve disheve grave tasse unequa unriva untramme"},
    {"ll", "l", "ity ize ized izer izers izes izing", "tranqui"},
    {"ll", "l", "ed ing or ors", "counse"},
    {"ll", "l", "et eted eting ets", "fi"},
    {"ll", "l", "ed ing ous ously", "marve"},
    {"ll", "l", "ed ing ist ists", "pane"},
    {"ll", "l", "en ens ies y", "woo"},
    {"ll", "l", "iper ipers isthenics", "ca"},
    {"ll", "l", "ed er ers", "jewe"},
    {"ll", "l", "ed ing ous", "libe"},
    {"ll", "l", "or ors", "counci"},
    {"ll", "l", "er est", "crue"},
    {"ll", "l", "ing ingly", "grue"},
    {"our", "or", "- ed ing s", "belab clam discol endeav harb succ"},
    {"our", "or", "- s", "arb misdemean parl rig savi splend tricol tum vap watercol"},
    {"our", "or", "- ant ants ed eds ful fully ing ize ized izes izing less s", "col"},
    {"our", "or", "- able ably ed ing s", "dishon hon"},
    {"our", "or", "-", "ard cand clang demean disfav ferv misbehavi ranc technicol val vig"},
    {"our", "or", "- able ably ed ing ite ites itism s", "fav"},
    {"our", "or", "- ed ing ings less s some", "flav"},
    {"our", "or", "- hood hoods ing liness ly s", "neighb"},
    {"our", "or", "- ed er ers ies y", "arm"},
    {"our", "or", "- al ism ist ists s", "behavi"},
    {"our", "or", "- ed er ers ing s", "lab"},
    {"our", "or", "- ed ies ing s y", "sav"},
    {"our", "or", "- ed ing less s", "hum"},
    {"our", "or", "- less s", "od"},
    {"our", "or", "- ed s", "rum"},
    {"our", "or", "ed", "enam multicol"},
    {"our", "or", "able ably", "unfav"},
    {"ae", "e",
     "matological matologist matologists matology moglobin mophilia mophiliac mophiliacs morrhage morrhaged morrhages "
     "morrhaging morrhoids",
     "h"},
    {"ae", "e", "mia mic sthesia sthetic sthetics sthetist sthetists sthetize sthetized sthetizes sthetizing", "an"},
    {"ae", "e", "derast derasts diatric diatrician diatricians diatrics dophile dophiles dophilia", "p"},
    {"ae", "e", "on ons sthete sthetes sthetic sthetically sthetics tiology", "-"},
    {"ae", "e", "cological cologist cologists cology", "gyn"},
    {"ae", "e", "olithic ontologist ontologists ontology", "pal"},
    {"ae", "e", "ologically ologist ologists", "arch"},
    {"ae", "e", "dia dias dic", "encyclop"},
    {"ae", "e", "a as", "bougainvill"},
    {"ae", "e", "sarean sareans", "c"},
    {"ae", "e", "ra ras", "chim"},
    {"ae", "e", "cal ces", "f"},
    {"ae", "e", "mia", "leuk tox"},
    {"ae", "e", "val", "medi prim"},
    {"ae", "e", "dic dics", "orthop"},
    {"ae", "e", "sidium sidiums", "pr"},
    {"re", "er", "- s",
     "amphitheat calib centilit centimet epicent goit kilomet lit louv met micromet millilit millimet mit "
     "reconnoit sab scept sepulch spect"},
    {"re", "er", "- fold folds piece pieces s", "cent"},
    {"re", "er", "-", "lacklust lust meag saltpet somb"},
    {"re", "er", "- goer goers s", "theat"},
    {"re", "er", "- glass s", "fib"},
    {"u", "", "ld lded lder ldered ldering lders ldier ldiest lding ldings lds ldy lt lted lting lts", "mo"},
    {"u", "", "lk lked lking lks", "ba"},
    {"u", "", "ld lded lding lds", "remo"},
    {"u", "", "lder ldered ldering lders", "smo"},
    {"u", "", "ed ing", "catalog"},
    {"s", "z", "e ed es ing", "analy cataly paraly psychoanaly"},
    {"s", "z", "e ed er ers es ing", "breathaly"},
    {"s", "z", "ier ies iest ily iness y", "co"},
    {"l", "ll", "- s", "appa disti enro enthra insti"},
    {"l", "ll", "- ment ments s", "insta"},
    {"l", "ll", "- ment s", "fulfi"},
    {"l", "ll", "ation ations", "cance"},
    {"oe", "e", "tal tid tus tuses", "f"},
    {"oe", "e", "opath opathic opaths opathy", "hom"},
    {"oe", "e", "sophagus sophaguses strogen", "-"},
    {"oe", "e", "a", "diarrh gonorrh"},
    {"oe", "e", "ia ias", "pharmacop"},
    {"me", "", "- s", "aerogram centigram gram kilogram milligram program"},
    {"ue", "", "- s", "analog catalog dialog epilog monolog prolog"},
    {"ugh", "f", "t tboard tboards tier tiest ts tsman tsmanship tsmen tswoman tswomen ty", "dra"},
    {"ce", "se", "- s", "offen preten"},
    {"ce", "se", "- less s", "defen"},
    {"ce", "se", "- d s", "licen"},
    {"gao", "jai", "l lbird lbirds lbreak lbreaks led ler lers ling ls", "-"},
    {"c", "k", "eptic eptical eptically epticism eptics", "s"},
    {"c", "k", "- s", "dis videodis"},
    {"ugh", "w", "- ed ing man men s share shares", "plo"},
    {"e", "", "ing", "ag bing glu"},
    {"e", "", "y", "phon stor"},
    {"y", "i", "phon phoned phoning phons", "s"},
    {"y", "i", "pher phers", "c"},
    {"y", "i", "re res", "t"},
    {"oeuv", "euve", "rability rable red ring rings", "man"},
    {"oeuv", "euve", "red ring", "outman"},
    {"s", "", "ed ing", "bias"},
    {"s", "", "es ing", "bus"},
    {"s", "", "es", "gas minibus"},
    {"e", "a", "y yed ying yish yness ys", "gr"},
    {"ph", "f", "ate ates ide ides ur urous", "sul"},
    {"lis", "iz", "e ed er ers es ing", "tranquil"},
    {"", "e", "red", "cent louv"},
    {"", "e", "red ring", "reconnoit"},
    {"", "u", "ge ged ges ging", "ga"},
    {"aesthetis", "esthetiz", "e ed es ing", "an"},
    {"que", "ck", "- book books s", "che"},
    {"x", "ct", "ion ions", "conne infle"},
    {"te", "", "- s", "epaulet omelet"},
    {"oeuvre", "euver", "- s", "man outman"},
    {"o", "", "ustache ustached ustaches ustachioed", "m"},
    {"s", "c", "e ed es ing", "practi"},
    {"", "o", "ve ved ves", "beho"},
    {"h", "", "urt urts", "yog"},
    {"p", "", "ed er ing", "worship"},
    {"ero", "ir", "plane planes", "a"},
    {"k", "", "- s", "almanac"},
    {"e", "i", "fact facts", "art"},
    {"n", "", "ister isters", "ban"},
    {"v", "", "ies y", "bev"},
    {"t", "", "ist ists", "clarinet"},
    {"a", "", "utist utists", "fl"},
    {"yne", "in", "- s", "gro"},
    {"ypho", "iffi", "n ns", "gr"},
    {"philtre", "filter", "- s", "-"},
    {"fe", "", "- s", "pouf"},
    {"y", "a", "jama jamas", "p"},
    {"ne", "", "- s", "ton"},
    {"", "ue", "- s", "travelog"},
    {"g", "", "on ons", "wag"},
    {"ho", "", "urt urts", "yog"},
};

/// Lists the words of the same list that follow no rule.
inline constexpr std::string_view irregular_spellings[][2] = {
    {"accoutrements", "accouterments"},
    {"aggrandisement", "aggrandizement"},
    {"aluminium", "aluminum"},
    {"archaeology", "archeology</span>"},
    {"archeological", "archaeological"},
    {"axe", "ax"},
    {"battleax", "battleaxe"},
    {"chequered", "checkered"},
    {"chilli", "chili"},
    {"crenelated", "crenellated"},
    {"edoema", "edema"},
    {"gipsies", "gypsies"},
    {"glamor", "glamour"},
    {"jewellery", "jewelry"},
    {"judgement", "judgment"},
    {"licencing", "licensing"},
    {"likeable", "likable"},
    {"mhm", "hmm"},
    {"misspelt", "misspelled"},
    {"mmm", "hmm"},
    {"pummelled", "pummel"},
    {"pummelling", "pummeled"},
    {"pzazz", "pizzazz"},
    {"sheikh", "sheik"},
    {"snowplough", "snowplow"},
    {"snowploughs", "snowplow"},
    {"storeys", "stories"},
    {"tranquilly", "tranquility"},
    {"unsavoury", "unsavory"},
};

/// Returns the American spelling of each British one.
inline std::unordered_map<std::string, std::string> american_spellings() {
  std::unordered_map<std::string, std::string> out;
  for (const auto& [british, american] : irregular_spellings) out.emplace(british, american);
  const auto part = [](std::string_view written) { return std::string(written == "-" ? "" : written); };
  for (const SpellingRule& rule : spelling_rules)
    for (const std::string_view stem : split_words(rule.stems))
      for (const std::string_view ending : split_words(rule.endings))
        out.emplace(part(stem) + std::string(rule.british) + part(ending),
                    part(stem) + std::string(rule.american) + part(ending));
  return out;
}

}  // namespace detail

/// Returns a word in American spelling, a word in small letters that is no British spelling as it is. Allocates.
inline std::string american_spelling(std::string_view word) {
  static const auto spellings = detail::american_spellings();
  std::string out(word);
  const auto found = spellings.find(out);
  return found == spellings.end() ? out : found->second;
}

}  // namespace LACONIC_ABI
}  // namespace laconic
