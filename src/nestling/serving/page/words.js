// English and Chinese. Elements name their words with data-text, data-label or data-placeholder.

import { byId, memory } from "./dom.js";

const WORDS = {
  en: {
    switchLanguage: "切换到中文",
    otherLanguage: "中",
    switchTheme: "Light or dark",
    version: "Version",
    newest: "Served",
    newestNamed: "{name} (served)",
    rejected: "{name}, rejected",
    newChat: "New chat",
    history: "Chats",
    historyEmpty: "No chats yet.",
    historyWhere: "They are kept in this browser; what the server keeps of them is for raising later versions.",
    untitled: "Without a title",
    forget: "Forget this chat",
    close: "Close",
    cancel: "Cancel",
    settings: "Settings",
    systemPrompt: "System prompt",
    systemHint: "What the assistant is told before the conversation",
    temperature: "Temperature (0 to 2; 0 always says the likeliest)",
    topP: "Top p (above 0, to 1)",
    maxTokens: "Longest answer in tokens",
    serverDefault: "the server's",
    reset: "The server's own",
    keep: "Keep",
    edit: "Edit this message",
    again: "Answer again",
    branches: "Alternatives",
    previousBranch: "The one before",
    nextBranch: "The next one",
    conversation: "Conversation",
    greeting: "Hello, I am {name}.",
    welcome:
      "I am a small language model, still being raised. I get things wrong. Tell me with a thumb, or compare two of my answers.",
    suggestions: [
      "Who are you?",
      "Tell me one thing about the ocean.",
      "Write two sentences about a rainy morning.",
      "How do I kill a process on Linux?",
    ],
    ask: "Write a message",
    send: "Send",
    stop: "Stop",
    stopped: "stopped",
    cut: "cut off at the length limit",
    against: "against",
    sameVersion: "itself",
    hint: "Votes stay on this server, for raising later versions.",
    you: "You",
    good: "Good answer",
    bad: "Bad answer",
    why: "Why? (optional)",
    thanksWhy: "Thanks. Why?",
    thanks: "Thank you.",
    copy: "Copy",
    whichIsBetter: "Which answer is better?",
    left: "Left",
    right: "Right",
    first: "First",
    second: "Second",
    tie: "Equally good",
    both_bad: "Both bad",
    tookOver: "{name} answers from now on.",
    loadingVersion: "{name} is being loaded …",
    noVersion: "The first version is on its way …",
    lost: "The connection was lost.",
    full: "This chat is longer than the model can read. Shorten your message or begin a new chat.",
    unreachable: "The server cannot be reached. Trying again …",
    notRecorded: "The judgment was not recorded: {why}",
    retry: "Try again",
    raising: "Raising",
    stepOf: "step {step} of {steps}",
    step: "step {step}",
    etaSeconds: "less than a minute left",
    etaMinutes: "about {n} min left",
    etaHours: "about {n} h left",
    finished: "Raised",
    failed: "Raising stopped",
    tokenTitle: "Token",
    tokenWhy: "This server is reachable by others and wants its token.",
    tokenEnter: "Enter",
    answers: "Answers",
    versions: "Versions",
    answerNumber: "Answer {n}",
    putInOrder: "Put the answers in order, the best first: drag them, or use the arrow keys on a handle.",
    moveAnswer: "Move this answer",
    moveUp: "One place up",
    moveDown: "One place down",
    movedTo: "Answer {n} is in place {at} now.",
    equalToAbove: "As good as the one before",
    recordOrder: "Record this order",
    allBad: "None of them is good",
    keptNone: "No answer is kept in the conversation.",
    writeBetter: "Write a better answer",
    yourWords: "in your words",
    whatChanged: "What changed?",
    notServed: "{name} was examined and is not served.",
    verdictServed: "{name} passed",
    verdictKept: "{name} was not better enough",
    curve: "{name}: from {from} to {to} by step {step}",
    state_accepted: "passed",
    state_rejected: "not served",
    state_candidate: "not examined",
    stateServing: "answers now",
    madeFrom: "from {parents}",
    examPassed:
      "Passed against {against}: {gain} points on tasks that it was never rewarded for, at least {least}, and nothing guarded has fallen further than allowed.",
    examBetterBut: "Better than {against} by {gain} points on tasks that it was never rewarded for, but:",
    examNotBetter:
      "Not shown to be better than {against} on tasks that it was never rewarded for: {gain} points, perhaps only {least}.",
    mayHaveLost: "{name} may have fallen by up to {most} (allowed: {allowed}).",
    changes: "Against {against}, in points of a hundred",
    figure_validation_loss: "validation loss",
    figure_pair_accuracy: "pairs in order",
    figure_validation_pair_accuracy: "validation pairs in order",
    "figure_reward/total": "reward",
    figure_kl: "KL",
    stage_base: "Base model",
    stage_replay: "Keeping what it knows",
    "stage_gate-base": "First exam",
    "stage_gate-sft": "Exam after learning",
    "stage_gate-ppo": "Exam after practising",
    stage_report: "Report",
    stage_sft: "Learning to chat",
    stage_rank: "Ranking answers",
    stage_reward_model: "Learning what is good",
    stage_ppo: "Practising",
  },
  zh: {
    switchLanguage: "Switch to English",
    otherLanguage: "EN",
    switchTheme: "浅色或深色",
    version: "版本",
    newest: "正在使用",
    newestNamed: "{name}（正在使用）",
    rejected: "{name}（未通过）",
    newChat: "新对话",
    history: "对话记录",
    historyEmpty: "还没有对话。",
    historyWhere: "记录保存在这个浏览器里；服务器保存的部分用于培养以后的版本。",
    untitled: "无标题",
    forget: "删除这个对话",
    close: "关闭",
    cancel: "取消",
    settings: "设置",
    systemPrompt: "系统提示",
    systemHint: "对话开始前告诉助手的话",
    temperature: "温度（0 到 2；0 总是选最可能的）",
    topP: "Top p（大于 0，至多 1）",
    maxTokens: "回答的最大长度（词元）",
    serverDefault: "服务器默认",
    reset: "恢复服务器默认",
    keep: "保存",
    edit: "修改这条消息",
    again: "重新回答",
    branches: "其他说法",
    previousBranch: "上一个",
    nextBranch: "下一个",
    conversation: "对话",
    greeting: "你好，我是 {name}。",
    welcome: "我是一个还在成长的小语言模型，会说错话。请用拇指告诉我，或者比较我的两个回答。",
    suggestions: ["你是谁？", "你好！", "Tell me one thing about the ocean.", "Write two sentences about a rainy morning."],
    ask: "写一条消息",
    send: "发送",
    stop: "停止",
    stopped: "已停止",
    cut: "达到长度上限",
    against: "对比",
    sameVersion: "自己",
    hint: "评价只保存在这台服务器上，用于培养以后的版本。",
    you: "你",
    good: "回答得好",
    bad: "回答得不好",
    why: "为什么？（可不填）",
    thanksWhy: "谢谢。为什么？",
    thanks: "谢谢。",
    copy: "复制",
    whichIsBetter: "哪个回答更好？",
    left: "左边",
    right: "右边",
    first: "第一个",
    second: "第二个",
    tie: "一样好",
    both_bad: "都不好",
    tookOver: "从现在起由 {name} 回答。",
    loadingVersion: "正在载入 {name} ……",
    noVersion: "第一个版本马上就来 ……",
    lost: "连接中断了。",
    full: "对话太长，模型读不下了。请缩短消息，或开始新对话。",
    unreachable: "无法连接服务器，正在重试 ……",
    notRecorded: "评价没有保存：{why}",
    retry: "再试一次",
    raising: "培养",
    stepOf: "第 {step} 步，共 {steps} 步",
    step: "第 {step} 步",
    etaSeconds: "还剩不到一分钟",
    etaMinutes: "大约还剩 {n} 分钟",
    etaHours: "大约还剩 {n} 小时",
    finished: "培养完成",
    failed: "培养中止",
    tokenTitle: "令牌",
    tokenWhy: "这台服务器别人也能访问，需要令牌。",
    tokenEnter: "进入",
    answers: "回答数",
    versions: "各个版本",
    answerNumber: "第 {n} 个回答",
    putInOrder: "请按好坏排列，最好的在前：可以拖动，也可以在手柄上用方向键。",
    moveAnswer: "移动这个回答",
    moveUp: "上移一位",
    moveDown: "下移一位",
    movedTo: "第 {n} 个回答现在排在第 {at} 位。",
    equalToAbove: "与前一个一样好",
    recordOrder: "提交这个顺序",
    allBad: "没有一个好",
    keptNone: "这些回答都不保留在对话里。",
    writeBetter: "写一个更好的回答",
    yourWords: "由你改写",
    whatChanged: "有什么变化？",
    notServed: "{name} 考试没有通过，不会启用。",
    verdictServed: "{name} 已通过",
    verdictKept: "{name} 没有通过",
    curve: "{name}：到第 {step} 步，从 {from} 到 {to}",
    state_accepted: "已通过",
    state_rejected: "未启用",
    state_candidate: "未考试",
    stateServing: "正在回答",
    madeFrom: "来自 {parents}",
    examPassed: "与 {against} 相比通过：在从未奖励过的题目上 {gain} 分，至少 {least} 分；受保护的能力没有超出允许的下降。",
    examBetterBut: "在从未奖励过的题目上比 {against} 好 {gain} 分，但是：",
    examNotBetter: "没有证明比 {against} 更好：在从未奖励过的题目上 {gain} 分，可能只有 {least} 分。",
    mayHaveLost: "“{name}”可能下降多达 {most}（允许 {allowed}）。",
    changes: "与 {against} 相比（百分点）",
    figure_loss: "损失",
    figure_validation_loss: "验证损失",
    figure_pair_accuracy: "排序正确率",
    figure_validation_pair_accuracy: "验证排序正确率",
    "figure_reward/total": "奖励",
    figure_kl: "KL",
    figure_entropy: "熵",
    measure_refusal: "拒绝有害请求",
    measure_harmless: "回答无害请求",
    measure_everyday: "回答日常请求",
    measure_premise: "分辨真假前提",
    measure_premise_false: "指出错误前提",
    measure_premise_true: "接受正确前提",
    measure_correction: "认错与坚持真相",
    measure_mistake: "承认错误",
    measure_hold_truth: "坚持真相",
    measure_memory: "记得前面的话",
    measure_identity: "知道自己的名字和身份",
    measure_chinese: "中文闲聊",
    measure_small_talk: "闲聊",
    measure_manners: "身份与闲聊",
    measure_ends: "开放问题不绕圈",
    measure_format: "遵守格式要求",
    measure_facts: "简单事实",
    measure_arithmetic: "小算术",
    measure_list_count: "列表长度正确",
    measure_starts_with: "按要求开头",
    measure_letter_case: "按要求大小写",
    measure_either_or: "二选一",
    measure_yes_no: "是非题",
    measure_verse: "短诗",
    measure_retention: "常识",
    measure_no_loop: "回答不绕圈",
    measure_ended: "回答能自己结束",
    measure_perplexity: "文章可预测性",
    stage_base: "基础模型",
    stage_replay: "保留已有知识",
    "stage_gate-base": "初次考试",
    "stage_gate-sft": "学习后考试",
    "stage_gate-ppo": "练习后考试",
    stage_report: "报告",
    stage_sft: "学习对话",
    stage_rank: "回答排序",
    stage_reward_model: "学习好坏",
    stage_ppo: "练习",
  },
};

const listeners = [];
let speaking = memory.get("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** The language spoken, as a tag. */
export const language = () => (speaking === "zh" ? "zh-Hans" : "en");

/** The words for a key, with {slots} filled in. */
export function t(key, slots = {}) {
  const words = WORDS[speaking][key] ?? WORDS.en[key];
  if (typeof words !== "string") return words;
  return words.replace(/\{(\w+)\}/g, (_, slot) => slots[slot]);
}

/** A stage's name for people; stages we do not know keep their own. */
export const stageName = (stage) => WORDS[speaking][`stage_${stage}`] ?? stage;

/** A figure's name, such as a loss's. */
export const figureName = (name) => WORDS[speaking][`figure_${name}`] ?? name.replaceAll("_", " ");

/** The name of something that is measured; `known` is what the server calls it, in English. */
export const measureName = (name, known) => WORDS[speaking][`measure_${name}`] ?? known;

/** Call whenever the language changes, and once now. */
export function onLanguage(listener) {
  listeners.push(listener);
  listener();
}

/** Let a node's text be the words for a key, now and after the language changes. Returns the node. */
export function saying(node, key, slots = {}) {
  node.dataset.text = key;
  node.dataset.slots = JSON.stringify(slots);
  node.textContent = t(key, slots);
  return node;
}

/** The same for its label: what a screen reader says and what a pointer sees. */
export function labelled(node, key) {
  node.dataset.label = key;
  node.setAttribute("aria-label", t(key));
  if (node.tagName === "BUTTON") node.title = t(key);
  return node;
}

function apply() {
  document.documentElement.lang = language();
  for (const node of document.querySelectorAll("[data-text]")) {
    saying(node, node.dataset.text, JSON.parse(node.dataset.slots ?? "{}"));
  }
  for (const node of document.querySelectorAll("[data-label]")) labelled(node, node.dataset.label);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
  byId("language").textContent = t("otherLanguage");
  for (const listener of listeners) listener();
}

/** Show the page in the visitor's language and let the button switch it. */
export function startWords() {
  byId("language").addEventListener("click", () => {
    speaking = speaking === "zh" ? "en" : "zh";
    memory.set("language", speaking);
    apply();
  });
  apply();
}
